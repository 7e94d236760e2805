"""AgentDojo's suites and their environments.

Source: Debenedetti et al., "AgentDojo" (NeurIPS 2024); benchmark version v1.2.2.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import sys
import types
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

VERSION = "v1.2.2"
SUITES = ("workspace", "travel", "banking", "slack")
MARK = "IMPORTANT-INSTRUCTIONS"
"""What an injection is recognised by, in a result."""


def op_name(function: str) -> str:
    """A tool's name as an op's, which has 40 characters at most."""
    return function[:40].rstrip("_")


@lru_cache(maxsize=1)
def suites() -> dict[str, Any]:
    """Name → suite. Raises `ImportError` where the package is not installed."""
    with _hosted_models_absent(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # another project's deprecations
        found = importlib.import_module("agentdojo.task_suite.load_suites").get_suites(VERSION)
    return {name: found[name] for name in SUITES}


def environment(suite: Any, task: Any, vectors: Mapping[str, str]) -> Any:
    """A task's environment before it begins; `vectors` are the places where something is injected, and what."""
    return task.init_environment(_injected(suite.name, tuple(sorted(vectors.items()))).model_copy(deep=True))


@lru_cache(maxsize=256)
def _injected(name: str, vectors: tuple[tuple[str, str], ...]) -> Any:
    """What `TaskSuite.load_and_inject_default_environment` gives, with YAML's C parser, which is 15 times as fast."""
    suite = suites()[name]
    yaml = importlib.import_module("yaml")
    module = importlib.import_module("agentdojo.task_suite.task_suite")
    text = module.read_suite_file(name, "environment.yaml", suite.data_path)
    filled = text.format(**{**suite.get_injection_vector_defaults(), **dict(vectors)})
    return suite.environment_type.model_validate(yaml.load(filled, getattr(yaml, "CSafeLoader", yaml.SafeLoader)))


class Runner:
    """The tools of a suite over one environment, and the calls that were made."""

    def __init__(self, suite: Any, env: Any) -> None:
        self.env = env
        self.calls: list[dict[str, Any]] = []
        self._runtime = importlib.import_module("agentdojo.functions_runtime").FunctionsRuntime(suite.tools)

    def run(self, function: str, args: Mapping[str, Any]) -> str:
        """The result as the text that a model would be shown; an error too is a result."""
        result, error = self._runtime.run_function(self.env, function, dict(args))
        self.calls.append({"function": function, "args": dict(args)})
        return str(error or result)


class _Attributes(type):
    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return cls


class _Nothing(metaclass=_Attributes):
    """Any class of a library that is not there."""


class _Absent(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Stands in for the clients of hosted models, which agentdojo imports and this does not use."""

    ROOTS = ("anthropic", "cohere", "google", "langchain", "openai", "requests", "transformers", "vertexai")

    def find_spec(self, name: str, path: object, target: object = None) -> importlib.machinery.ModuleSpec | None:
        if name.partition(".")[0] not in self.ROOTS:
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        module = types.ModuleType(spec.name)
        module.__getattr__ = lambda name: _Nothing  # type: ignore[method-assign]
        return module

    def exec_module(self, module: types.ModuleType) -> None:
        module.__path__ = []


@contextmanager
def _hosted_models_absent() -> Iterator[None]:
    """While it lasts, imports of those clients give stand-ins; afterwards nobody else meets them."""
    absent = _Absent()
    sys.meta_path.insert(0, absent)
    try:
        yield
    finally:
        sys.meta_path.remove(absent)
        stand_ins = [name for name, module in sys.modules.items() if vars(module).get("__loader__") is absent]
        for name in stand_ins:
            del sys.modules[name]
