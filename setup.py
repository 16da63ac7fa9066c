"""Package metadata, and the start-up files that make a plain `import basicsr` know finpercep_plugin's names."""

import re
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
STARTUP = ('finpercep_plugin.pth', 'finpercep_plugin.start', '_finpercep_autoload.py')


class BuildWithStartup(build_py):
    """Also lays the start-up files at the root of site-packages; being in the wheel's RECORD, they go with `pip
    uninstall`.
    """

    def run(self):
        super().run()
        # An editable wheel is made from what lies in install_lib, a normal one from build_lib.
        root = self.get_finalized_command('install').install_lib if self.editable_mode else self.build_lib
        Path(root).mkdir(parents=True, exist_ok=True)
        for name in STARTUP:
            shutil.copyfile(ROOT / 'startup' / name, Path(root) / name)


BASICSR = ['basicsr>=1.3.5', 'tensorboard']
GENERATORS = [
    'diffusers>=0.25',
    'peft>=0.7',
    'transformers>=4.35',
    'safetensors',
    'huggingface_hub',
    'timm>=0.9.16',
    'spandrel',
]
FGR = [
    'spandrel',
    'pyspng',
    'isal',
    'timm>=1.0.20',
    'transformers>=4.35',
    'scikit-image',
]  # DINOv3 came with timm 1.0.20
EIGHT_BIT = ['bitsandbytes']
RAY = ['ray[data]']
STUDY = ['fastapi>=0.110', 'uvicorn>=0.27', 'matplotlib', 'scipy', 'krippendorff']
TESTS = [
    'pytest',
    'pytest-timeout',
    'ruff',
    'pyiqa',
    'setuptools<81',  # pkg_resources, which openai-clip and pytorch_wavelets import
    'scikit-image',
    'scikit-learn',
    'webdataset',
    'PyWavelets',
    'pytorch_wavelets',
    'httpx',  # the test client of the user study
    'choix',
    'hypothesis',
    'schemathesis>=4',
    'playwright',
]

setup(
    name='finpercep_plugin',
    version=re.search(r"__version__ = '(.+)'", (ROOT / 'finpercep_plugin/__init__.py').read_text(encoding='utf-8'))[1],
    description='Reward models that see where an image is degraded, and RL fine-tuning of super-resolution generators',
    long_description=(ROOT / 'README.md').read_text(encoding='utf-8') if (ROOT / 'README.md').exists() else '',
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    packages=find_packages(include=['finpercep_plugin', 'finpercep_plugin.*']),
    package_data={
        'finpercep_plugin': ['options/*.yml', 'report/*.html', 'report/*.css', 'report/*.js', 'study/page/*']
    },
    cmdclass={'build_py': BuildWithStartup},
    python_requires='>=3.10',
    # Floors only, so that installing into a repository with old pins upgrades nothing. The tests that need no extra
    # were run on Python 3.10 with exactly these versions (constraint file: tests/floors.txt).
    install_requires=[
        'torch>=2.0.0',
        'numpy>=1.23.5',
        'opencv-python>=4.5.5.64',
        'pillow>=9.3.0',
        'pyyaml>=6.0',
        'lmdb>=1.3.0',
        'open_clip_torch>=2.23.0',
        'tqdm>=4.60.0',
        'typing_extensions>=4.5.0',
    ],
    extras_require={
        'generators': GENERATORS,
        'basicsr': BASICSR,
        'fgr': FGR,
        '8bit': EIGHT_BIT,
        'ray': RAY,
        'study': STUDY,
        'replication': [*BASICSR, 'matplotlib'],
        'dev': [*BASICSR, *GENERATORS, *FGR, *STUDY, *EIGHT_BIT, *TESTS],
    },
    entry_points={
        'console_scripts': [
            'finpercep-train = finpercep_plugin.cli.train:main',
            'finpercep-test = finpercep_plugin.cli.test:main',
            'finpercep-score = finpercep_plugin.cli.score:main',
            'finpercep-super-resolve = finpercep_plugin.cli.super_resolve:main',
            'finpercep-export = finpercep_plugin.cli.export_generator:main',
            'finpercep-build-fgr = finpercep_plugin.cli.build_fgr:main',
            'finpercep-build-preferences = finpercep_plugin.cli.build_preferences:main',
            'finpercep-check-data = finpercep_plugin.cli.check_data:main',
            'finpercep-export-fgr = finpercep_plugin.cli.export_fgr:main',
            'finpercep-show-fgr = finpercep_plugin.cli.show_fgr:main',
            'finpercep-report = finpercep_plugin.cli.report:main',
            'finpercep-user-study = finpercep_plugin.cli.user_study:main',
            'finpercep-quickstart = finpercep_plugin.cli.quickstart:main',
            'finpercep-tiny-checkpoints = finpercep_plugin.cli.tiny_checkpoints:main',
            'finpercep-memory-table = finpercep_plugin.cli.memory_table:main',
            'finpercep-options = finpercep_plugin.cli.options:main',
        ]
    },
    classifiers=['License :: OSI Approved :: Apache Software License', 'Programming Language :: Python :: 3'],
)
