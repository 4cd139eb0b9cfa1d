"""Reading YAML."""

from pathlib import Path
from typing import Any

from ..errors import UserError, missing_package


def read_yaml(path: Path) -> dict[str, Any]:
    yaml = load_yaml()
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path} cannot be read as YAML ({str(error).splitlines()[0]}).") from error
    if content is not None and not isinstance(content, dict):
        raise UserError(f"{path} is not a mapping of settings; write one `name: value` per line.")
    return {str(key): value for key, value in (content or {}).items()}


def load_yaml() -> Any:
    try:
        import yaml
    except ImportError as error:
        raise missing_package("Reading YAML", "yaml") from error
    return yaml
