"""XML from anyone: elements and texts, without document types, entities and other files.

The parser is expat, told to refuse a DOCTYPE: entities that multiply and files that are fetched
are declared there and nowhere else. No metadata of a satellite product has one.
"""

from dataclasses import dataclass, field

# A DOCTYPE is refused, and with it every entity.
from xml.parsers import expat  # nosec B406

from terrafm.storage.limits import XML_BYTES, XML_DEPTH, XML_ELEMENTS


class BadXmlError(ValueError):
    """A text that is no XML, or more than is read of one."""


@dataclass
class Element:
    """An element without its namespace.

    Attributes:
        name: local name.
        attributes: by name.
        children: in their order.
        text: its own, stripped.
    """

    name: str
    attributes: dict[str, str] = field(default_factory=dict)
    children: list["Element"] = field(default_factory=list)
    text: str = ""

    def all(self, name: str) -> list["Element"]:
        """Elements of a name at any depth below this one, in the order of the text."""
        found: list[Element] = []
        waiting = list(reversed(self.children))
        while waiting:
            element = waiting.pop()
            if element.name == name:
                found.append(element)
            waiting += reversed(element.children)
        return found

    def first(self, *names: str) -> str:
        """Text of the first element of any of these names, the first name first; "" without."""
        for name in names:
            for element in self.all(name):
                if element.text:
                    return element.text
        return ""


class _EnoughError(Exception):
    """All that was wanted has been read."""


def parse_xml(content: bytes, until: str | None = None) -> Element:
    """Parses a text.

    Args:
        content: the text, or where `until` is given the beginning of one.
        until: name of an element behind whose end nothing is read.

    Returns:
        The root element.

    Raises:
        BadXmlError: not well-formed, with a document type, or larger than metadata is.
    """
    if len(content) > XML_BYTES:
        raise BadXmlError(f"more than the {XML_BYTES:,} bytes that are read of metadata")
    builder = _Builder(until)
    parser = expat.ParserCreate(namespace_separator=" ")
    parser.buffer_text = True
    parser.StartDoctypeDeclHandler = _refuse
    parser.EntityDeclHandler = _refuse
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.characters
    try:
        parser.Parse(content, True)
    except _EnoughError:
        pass
    except expat.ExpatError as error:
        raise BadXmlError(f"not readable XML (cut short?): {error}") from None
    return builder.root


def _refuse(*_: object) -> None:
    raise BadXmlError("a document type declaration: metadata of products has none")


class _Builder:
    def __init__(self, until: str | None) -> None:
        self.root = Element("")
        self._open: list[Element] = []
        self._texts: list[list[str]] = []
        self._until = until
        self._count = 0

    def start(self, name: str, attributes: dict[str, str]) -> None:
        self._count += 1
        if self._count > XML_ELEMENTS:
            raise BadXmlError(f"more than {XML_ELEMENTS:,} elements")
        if len(self._open) >= XML_DEPTH:
            raise BadXmlError(f"more than {XML_DEPTH} levels")
        element = Element(_local(name), {_local(key): text for key, text in attributes.items()})
        if self._open:
            self._open[-1].children.append(element)
        else:
            self.root = element
        self._open.append(element)
        self._texts.append([])

    def end(self, _: str) -> None:
        element = self._open.pop()
        element.text = "".join(self._texts.pop()).strip()
        if element.name == self._until:
            raise _EnoughError

    def characters(self, text: str) -> None:
        self._texts[-1].append(text)


def _local(name: str) -> str:
    return name.rpartition(" ")[2]
