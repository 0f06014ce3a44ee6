"""The house rules, read from the imports: floors, doors, late imports, packages, file sizes."""

import ast
import tomllib
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FLOORS = {"models": 0, "engine": 1, "server": 2}
MAX_LINES = 400
# The only places where an import may stand inside a function, and why.
LATE = {
    "models/progress.py": "rich, only where somebody looks at a terminal",
    "server/cli.py": "the server and the tools, only for the command that needs them",
    "models/tools/sparsify.py": "the training stack, an extra: what is missing is named first",
    "engine/client.py": "the engine process: keeps torch out of the API process",
    "engine/process.py": "the runner: keeps torch out of whoever only wants to start the process",
    "server/serve.py": "OpenTelemetry, an extra, only where traces are asked for",
    "server/checkpoint.py": "huggingface_hub, only for a model that is not here",
}
NO_TORCH = ("config", "request", "messages", "pages", "scheduler", "metrics")


def sources(*folders: str) -> list[Path]:
    return sorted(p for folder in folders for p in (ROOT / folder).rglob("*.py"))


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@cache
def imports(path: Path) -> list[tuple[int, str, bool]]:
    """(line, absolute module below the root or foreign, late) of every import in a file."""
    tree = ast.parse(path.read_text())
    top = {id(node) for node in tree.body}
    package = path.relative_to(ROOT).parent.parts
    found = []
    for node in ast.walk(tree):
        late = id(node) not in top
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name, late) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*base, *([node.module] if node.module else [])])
            found.append((node.lineno, module, late))
            # `from ..models import calibration` names a module, not only a name in one
            found += [
                (node.lineno, f"{module}.{alias.name}", late)
                for alias in node.names
                if (ROOT / module.replace(".", "/") / f"{alias.name}.py").is_file()
            ]
    return found


PRODUCT = sources(*FLOORS)


@pytest.mark.parametrize("path", PRODUCT, ids=name)
def test_imports_point_down(path):
    floor = path.relative_to(ROOT).parts[0]
    for line, module, _ in imports(path):
        target = module.split(".")[0]
        assert FLOORS.get(target, -1) <= FLOORS[floor], f"{name(path)}:{line} imports {module}"
        assert target != "turbosparse", f"{name(path)}:{line}: relative imports inside the product"


def test_there_are_no_circles():
    graph = {
        name(p).removesuffix(".py").replace("/", "."): {m for _, m, late in imports(p) if not late}
        for p in PRODUCT
    }
    done: set[str] = set()

    def visit(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, " -> ".join([*trail, module])
        if module in graph and module not in done:
            for target in graph[module]:
                visit(target, (*trail, module))
            done.add(module)

    for module in graph:
        visit(module, ())


@pytest.mark.parametrize("path", PRODUCT, ids=name)
def test_only_the_door_imports_kernels(path):
    if path.parent.name == "kernels":
        return
    for line, module, _ in imports(path):
        kernel = module.startswith("models.kernels.") and module.split(".")[2] not in (
            "ops",
            "reference",  # the meaning itself may be asked for: the oracle predictor does
            "reference_pages",
            "reference_predict",
        )
        assert not kernel, f"{name(path)}:{line} imports {module}"


@pytest.mark.parametrize("path", PRODUCT, ids=name)
def test_only_commands_import_the_tools(path):
    own = "tools" in path.parts or path.parent.name == "commands"
    if own or name(path) == "server/cli.py":
        return
    for line, module, _ in imports(path):
        assert not module.startswith("models.tools"), f"{name(path)}:{line} imports {module}"


@pytest.mark.parametrize("path", PRODUCT, ids=name)
def test_imports_stand_on_top(path):
    late = [(line, module) for line, module, late in imports(path) if late]
    assert not late or name(path) in LATE, f"{name(path)}: {late}"


@pytest.mark.parametrize("module", NO_TORCH)
def test_policy_knows_no_tensor(module):
    path = ROOT / "engine" / f"{module}.py"
    if path.is_file():
        foreign = {m.split(".")[0] for _, m, _ in imports(path)}
        assert not foreign & {"torch", "numpy", "models"}, name(path)


def test_the_api_process_never_imports_torch():
    """Followed through our own modules from the app: torch would cost it seconds and memory. Nor
    does an engine's process without a model, as the echo engine's: it would start in seconds."""
    seen: set[str] = set()
    todo = ["server.app", "server.cli", "engine.process"]
    while todo:
        module = todo.pop()
        path = ROOT / f"{module.replace('.', '/')}.py"
        if module in seen or not path.is_file():
            continue
        seen.add(module)
        for line, target, late in imports(path):
            if not late:
                heavy = target.split(".")[0] in ("torch", "transformers", "numba")
                assert not heavy, f"{name(path)}:{line} imports {target}"
                todo.append(target)
    assert "engine.client" in seen or "engine.messages" in seen


def test_every_folder_of_code_is_packaged():
    """A forgotten sub-package works in the editable install and is missing from the wheel."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    folders = {name(p.parent) for p in PRODUCT}
    expected = {"turbosparse"} | {f"turbosparse.{f.replace('/', '.')}" for f in folders}
    assert set(settings["tool"]["setuptools"]["packages"]) == expected


def test_all_of_the_bundled_model_is_packaged():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    patterns = [*settings["package-data"]["turbosparse.models.tiny"], "__init__.py"]
    tiny = ROOT / "models" / "tiny"
    packaged = {path for pattern in patterns for path in tiny.glob(pattern)}
    own = (path for path in tiny.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    assert set(own) <= packaged


@pytest.mark.parametrize("path", sources(*FLOORS, "tests", "benchmarks"), ids=name)
def test_files_stay_readable(path):
    lines = path.read_text().splitlines()
    assert len(lines) <= MAX_LINES, f"{name(path)} has {len(lines)} lines"
    if path.name == "__init__.py":
        assert not lines, f"{name(path)}: sub-packages stay empty"
    else:
        assert "TYPE_CHECKING" not in path.read_text() or path == Path(__file__), name(path)
