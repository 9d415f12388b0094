"""Ports at which the client speaks first and says whom it means: TLS, and HTTP without it."""

TLS_PORTS = frozenset({443, 465, 636, 853, 989, 990, 992, 993, 994, 995, 5061, 6443, 8443, 9443})
HTTP_PORTS = frozenset({80, 591, 3000, 5000, 8000, 8008, 8080, 8081, 8088, 8888})
SPEAKING_PORTS = TLS_PORTS | HTTP_PORTS
