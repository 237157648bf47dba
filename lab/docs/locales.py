"""Write the English of `locales/` from the nodes' schemas, and say what is to be translated.

    python -m lab.docs locales

The host serves `locales/LANGUAGE/*.json` to the editor: `nodeDefs.json` has what the nodes say, `main.json` the
headings. A text whose English has changed loses its translations, which are printed. What a language lacks the editor
shows in English; `tests/host/test_locales.py` fails until it is translated.
"""

import json

from ..package import ROOT

LOCALES = ROOT / "locales"
LANGUAGES = ("zh", "ja")
FOLDERS = ("ComfyUI-Steer", "ComfyUI-Steer-main", "comfyui-steer", "steer-diffusion")
"""What the package's folder is called: by git, as an archive, by ComfyUI-Manager, by the registry."""
HEADING = "Steer: edit pictures"  # the editor cuts it off after about twenty letters


def update() -> None:
    """Write the English, take out translations of what it no longer says, and print what is to be translated."""
    for file, texts in english().items():
        before, now = flat(read("en", file)), flat(texts)
        write("en", file, now)
        for language in LANGUAGES:
            had = flat(read(language, file))
            kept = {key: had[key] for key in now if key in had and before.get(key) == now[key]}
            write(language, file, kept)
            for key in (key for key in now if key not in kept):
                print(f"{language}/{file} {'.'.join(key)}\n    {now[key]}\n    was: {had.get(key, 'nothing')}")


def english() -> dict[str, dict]:
    """What the schemas say now, by file, in the editor's form."""
    from steer.nodes import NODES

    schemas = [node.GET_SCHEMA() for node in NODES]
    outputs = [output for schema in schemas for output in schema.outputs]
    headings = {
        "templateWorkflows": {"category": dict.fromkeys(FOLDERS, HEADING)},
        "nodeCategories": {part: part for schema in schemas for part in schema.category.split("/")},
        "dataTypes": {o.io_type: o.io_type for o in outputs if not o.display_name and o.io_type.startswith("STEER")},
    }
    return {"nodeDefs.json": {schema.node_id: _node(schema) for schema in schemas}, "main.json": headings}


def _node(schema) -> dict:
    return {
        "display_name": schema.display_name,
        "description": schema.description,
        "inputs": {i.id: {"name": i.display_name or i.id, "tooltip": i.tooltip} for i in schema.inputs},
        "outputs": {str(index): _output(output) for index, output in enumerate(schema.outputs)},
    }


def _output(output) -> dict:
    """One without a name of its own has its type's, which the editor translates."""
    return ({"name": output.display_name} if output.display_name else {}) | {"tooltip": output.tooltip}


def flat(texts: dict, above: tuple[str, ...] = ()) -> dict[tuple[str, ...], str]:
    """The texts by their path."""
    found = {}
    for key, value in texts.items():
        found |= flat(value, (*above, key)) if isinstance(value, dict) else {(*above, key): value}
    return found


def read(language: str, file: str) -> dict:
    path = LOCALES / language / file
    return json.loads(path.read_text("utf-8")) if path.is_file() else {}


def write(language: str, file: str, texts: dict[tuple[str, ...], str]) -> None:
    nested: dict = {}
    for (*above, key), text in texts.items():
        place = nested
        for part in above:
            place = place.setdefault(part, {})
        place[key] = text
    path = LOCALES / language / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(nested, ensure_ascii=False, indent=2) + "\n", "utf-8")
