"""Why a test may be skipped."""

from typing import Final

NO_BROWSER: Final = "no Chromium on the search path; the console is tested in one (apt-get install chromium)"
"""The one reason for which a test on a broker may be skipped: newcomers need no browser to run the tests."""

NO_PROMTOOL: Final = "no promtool on the search path; the alert rules are tried with it (apt-get install prometheus)"
"""Nothing that touches Kafka needs it."""
