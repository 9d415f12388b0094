"""The policy language, on one page.

    policy    = item *( separator item )        separator = "," or line break
    item      = profile / default / mode / rule
    profile   = "public" / "private" / "host"   expand in place, and compose
              / "none" / "all"                  a whole policy: alone
    default   = ( "default_egress" / "default_ingress" ) "=" action
    mode      = "mode=" ( "enforce" / "report" )
    rule      = action [ ":" direction ] "@" target [ ":" service ]
    action    = "allow" / "deny"
    direction = "egress" / "ingress" / "any"    egress if absent
    target    = "any" / "dns" / group / network / narrowed / domain
    group     = "public" / "private" / "loopback" / "link-local" / "multicast" / "reserved"
              / "host" / "guests" / "metadata" / "meta"
    network   = IPv4 [ "/" prefix ] / "[" IPv6 [ "/" prefix ] "]"
    narrowed  = ( "host" / "guests" / "metadata" / "meta" ) "=" network
    domain    = name / "*." name / ( "domain=" / "suffix=" ) name       egress only
    service   = protocols [ ":" ports ] / ports                         ports alone: tcp+udp
    protocols = "any" / protocol *( "+" protocol )
    protocol  = "tcp" / "udp" / "icmpv4" / "icmpv6"
    ports     = "any" / range *( "+" range )
    range     = port [ "-" port ]               port = 1 to 65535

A name without a key has a dot, so that a misspelt word stays an error: one label alone is written
`domain=localbox`. `*.name` and `suffix=name` are the name and all below it.

`#` begins a comment that ends with its line; a line break may follow a comma. Blanks around items
are ignored. Words are lower case.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from ..errors import ConfigError
from .items import Draft
from .rules import SEALED, Policy
from .span import Span
from .tables import read_list, read_table

#: Characters in a policy text; 10,000 rules of a hundred characters fit.
MAX_TEXT = 1_048_576

_TOKEN = re.compile(r"#[^\n]*|[,\n]|[^,\n#]+")


def parse_policy(
    source: str | Mapping[str, object] | Sequence[object] | Policy | None,
) -> Policy:
    """The policy that `source` says: text, a table, a list of items, or a policy itself.

    `None` is sealed. Raises `PolicyError` pointing at the character, or `ConfigError` naming the
    key; nothing else.
    """
    if source is None:
        return SEALED
    if isinstance(source, Policy):
        return source
    if isinstance(source, str):
        return _read_text(source)
    if isinstance(source, Mapping):
        return read_table(dict(source))
    if isinstance(source, (list, tuple)):
        return read_list(source)
    raise ConfigError("policy", source, "is text, a table or a list of items")


def _read_text(text: str) -> Policy:
    whole = Span.whole(text)
    if len(text) > MAX_TEXT:
        whole.fail(f"a policy has at most {MAX_TEXT} characters, this has {len(text)}", at=MAX_TEXT)
    draft = Draft()
    count = 0
    for item in _items(whole):
        draft.add_item(item)
        count += 1
    if not count:
        whole.fail("an empty policy", "a policy without any network is written 'none'")
    return draft.policy()


def _items(whole: Span) -> Iterator[Span]:
    """The items between separators; a comma has an item on both sides."""
    comma: int | None = None
    before = False
    for token in _TOKEN.finditer(whole.source):
        text = token.group()
        if text == ",":
            if not before:
                whole.fail("nothing stands before this comma", "remove it", at=token.start())
            comma, before = token.start(), False
        elif text[0] not in "\n#":
            item = whole.part(token.start(), token.end()).stripped()
            if item.text:
                yield item
                comma, before = None, True
    if comma is not None:
        whole.fail("nothing stands after this comma", "remove it", at=comma)
