"""User studies: two results side by side, which one preserves more, which one looks more natural."""
