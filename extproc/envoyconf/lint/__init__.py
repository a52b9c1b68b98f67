"""Reads an operator's own envoy.yaml and says what in it would hurt an AI gateway with our processor.

A rule is a function from a `Subject` to findings; a new one is written in `processor` (our filters and their
clusters) or `traffic` (the rest) and named in that module's `RULES`.
"""

from collections.abc import Iterator
from typing import Final

import yaml

from extproc.envoyconf.lint import processor, traffic
from extproc.envoyconf.lint.model import Finding, Subject
from extproc.envoyconf.lint.tree import Document

__all__ = ["Finding", "lint"]

_TOP: Final = {"static_resources", "dynamic_resources", "resources"}


def lint(text: str, *, max_body: int = 8 << 20, filename: str = "envoy.yaml") -> list[Finding]:
    """What would hurt, in the order of the file. ``max_body``: bytes of the largest request to expect."""
    try:
        document = Document(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        line = mark.line + 1 if mark else None
        return [Finding("error", "yaml", "", line, f"{filename} is not YAML: {error.problem}", "mend it")]
    except (yaml.YAMLError, ValueError) as error:
        return [Finding("error", "yaml", "", None, f"{filename} is not YAML: {error}", "mend it")]
    subject = Subject(document, max_body)
    findings = [*_shape(subject), *(f for rule in (*processor.RULES, *traffic.RULES) for f in rule(subject))]
    return sorted(findings, key=lambda finding: (finding.line or 0, finding.path, finding.rule))


def _shape(subject: Subject) -> Iterator[Finding]:
    roots = [root for root in subject.document.roots if root.value is not None]
    if not roots:
        yield Finding("error", "empty", "", None, "there is nothing in this file", "`extproc envoy render` writes one")
    for root in roots:
        if not isinstance(root.value, dict) or not _TOP & set(root.value):
            yield subject.finding(
                "error",
                "not-envoy",
                root,
                "neither static_resources nor resources: this is no Envoy configuration",
                "give the bootstrap file, or the files of listeners, clusters and routes",
            )
            continue
        for node in root.walk():
            if node.path.endswith("typed_config") and isinstance(node.value, dict) and not node.get("@type"):
                yield subject.finding(
                    "error",
                    "no-type",
                    node,
                    "typed_config without @type: Envoy refuses it",
                    '"@type": type.googleapis.com/…',
                )
    if roots and subject.listeners and not subject.router_stages:
        yield subject.finding(
            "error",
            "no-router-stage",
            subject.listeners[0],
            "no ext_proc filter of ours in any listener: nothing is checked",
            "add the router stage, see envoy/snippet.yaml",
        )
