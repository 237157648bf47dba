"""The README and the pages beside it: what they link to, and the templates and blueprints they name, are there."""

import re

import pytest
from steer.lab.demo.runner import workflow_names
from steer.lab.package import ROOT

PAGES = [
    "README.md",
    "CONTRIBUTING.md",
    "bench/README.md",
    *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md"))),
]


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_somewhere(page):
    path = ROOT / page
    targets = [target for target in re.findall(r"\]\(([^)#]+)", path.read_text()) if "://" not in target]
    assert [target for target in targets if not (path.parent / target).is_file()] == []


def test_the_readmes_jobs_have_a_template_and_a_blueprint():
    rows = re.findall(r"^\| [^|]+ \| \*(Steer .+?)\* \| \*(.+?)\* \|$", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert len(rows) == 7
    for template, blueprint in rows:
        assert (ROOT / "example_workflows" / f"{template}.json").is_file(), template
        assert (ROOT / "subgraphs" / f"{blueprint}.json").is_file(), blueprint


def test_the_table_of_methods_has_every_node_and_every_workflow():
    text = (ROOT / "docs" / "methods.md").read_text()
    named = set(re.findall(r"`(\w+)`", text))
    assert {path.stem for path in (ROOT / "web" / "docs").glob("*.md")} == {name for name in named if "Steer" in name}
    last = [row.rpartition("| ")[2] for row in text.replace(" |\n", "\n").splitlines() if row.startswith("| ")]
    assert set(workflow_names()) == set(re.findall(r"`(\w+)`", " ".join(last)))
