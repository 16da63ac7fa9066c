"""The paper's comparisons at a small scale: which reward, which curriculum, which algorithm, on a handful of photos."""
