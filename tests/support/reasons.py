"""Why a test may be skipped."""

from typing import Final

NO_BROWSER: Final = "no Chromium on the search path; the console is tested in one (apt-get install chromium)"
NO_NODE: Final = "no Node with tus-js-client, of which uploads are tested as well (install Node 18 or later, with npm)"

ALLOWED: Final = (NO_BROWSER, NO_NODE)
"""For these a test on a broker may be skipped: newcomers need neither a browser nor Node to run the tests."""

NO_COMPOSE: Final = "no Docker engine with Compose; the compose file is tried on one"
"""A soak run, which `make test` leaves out."""

NO_PROMTOOL: Final = "no promtool on the search path; the alert rules are tried with it (apt-get install prometheus)"
"""Nothing that touches Kafka needs it."""
