"""Names under which DNS itself hides from us: resolvers over HTTPS, TLS and QUIC, and relays.

A guest that reaches one of these resolves where no policy sees it. The list closes the doors that
browsers, phones and operating systems open by themselves; it cannot be complete, and does not need
to be: a name resolved elsewhere has no pin here, so no rule that allows a name opens for it.

Sources: the resolvers built into Firefox and Chromium, the providers' own pages, and the curl
project's list of DNS-over-HTTPS servers.
"""

from __future__ import annotations

#: Each stands for itself and for everything below it (`abc123.dns.nextdns.io`).
DOH_NAMES = frozenset(
    (
        *("dns.google", "dns.google.com", "dns64.dns.google", "8888.google"),
        *("cloudflare-dns.com", "one.one.one.one", "1dot1dot1dot1.com", "dns.cloudflare.com"),
        *("cloudflare-gateway.com", "every1dns.com"),
        *("dns.quad9.net", "dns9.quad9.net", "dns10.quad9.net", "dns11.quad9.net"),
        *("dns12.quad9.net", "dns.umbrella.com", "doh.umbrella.com"),
        *("doh.opendns.com", "dns.opendns.com", "doh.familyshield.opendns.com"),
        *("doh.sandbox.opendns.com", "sandbox.opendns.com", "familyshield.opendns.com"),
        *("adguard-dns.com", "dns.adguard.com", "dns-family.adguard.com"),
        *("dns-unfiltered.adguard.com", "dns.nextdns.io", "doh3.dns.nextdns.io"),
        *("firefox.dns.nextdns.io", "chromium.dns.nextdns.io", "doh.cleanbrowsing.org"),
        *("security-filter-dns.cleanbrowsing.org", "family-filter-dns.cleanbrowsing.org"),
        *("adult-filter-dns.cleanbrowsing.org", "dns.controld.com", "freedns.controld.com"),
        *("dns.mullvad.net", "doh.mullvad.net", "dns.alidns.com", "doh.pub", "dot.pub"),
        *("dns.pub", "doh.360.cn", "dot.360.cn", "dns.twnic.tw", "public.dns.iij.jp"),
        *("doh.dns.sb", "dot.sb", "doh.sb", "dns.sb", "doh.li", "doh.ffmuc.net"),
        *("dot.ffmuc.net", "dns.digitale-gesellschaft.ch", "dns.switch.ch", "odvr.nic.cz"),
        *("doh.xfinity.com", "dot.xfinity.com", "dns.cox.net", "dot.cox.net", "doh.cox.net"),
        *("doh.quickline.ch", "private.canadianshield.cira.ca", "canadianshield.cira.ca"),
        *("dns.njal.la", "doh.applied-privacy.net", "dot1.applied-privacy.net"),
        *("dns.rabbitdns.org", "doh.libredns.gr", "dot.libredns.gr", "doh.tiar.app"),
        *("dot.tiar.app", "jp.tiar.app", "jp.tiarap.org", "doh.tiarap.org", "blahdns.com"),
        *("dns0.eu", "joindns4.eu", "dns.decloudus.com", "doh.dnslify.com", "dnsforge.de"),
        *("dns.bebasid.com", "dns.comss.one", "dns.yandex.net", "common.dot.dns.yandex.net"),
        *("safe.dot.dns.yandex.net", "family.dot.dns.yandex.net", "wikimedia-dns.org"),
        *("basic.rethinkdns.com", "max.rethinkdns.com", "rdns.deno.dev", "doh.la.ahadns.net"),
        *("ahadns.net", "dns.circl.lu", "unfiltered.joindns4.eu", "dns.de.futuredns.eu.org"),
        *("resolver-eu.lelux.fi", "doh.post-factum.tk", "doh.seby.io", "dot.seby.io"),
        *("ordns.he.net", "dns.artikel10.org", "dnsovertls.sinodun.com"),
        *("getdnsapi.net", "doh.appliedprivacy.net", "doh.bortzmeyer.fr", "dot.bortzmeyer.fr"),
    )
)

#: Names that a client asks for to learn whether it may hide: NXDOMAIN tells it not to.
CANARY_NAMES = frozenset(
    (
        "use-application-dns.net",  # Firefox: do not switch to DNS over HTTPS by default
        "mask.icloud.com",  # Apple's iCloud Private Relay …
        "mask-h2.icloud.com",  # … and its way over TCP
        "resolver.arpa",  # discovery of a designated, encrypted resolver (RFC 9462)
    )
)

_HIDDEN = DOH_NAMES | CANARY_NAMES


def is_encrypted_resolver(name: str) -> bool:
    """Whether `name` (canonical text) is, or is below, one of these."""
    while name:
        if name in _HIDDEN:
            return True
        _label, _dot, name = name.partition(".")
    return False
