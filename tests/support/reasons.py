"""Why a test on a broker may be skipped: newcomers need neither a browser nor Node to run the tests."""

from typing import Final

NO_BROWSER: Final = "no Chromium on the search path; the console is tested in one (apt-get install chromium)"
NO_NODE: Final = "no Node with tus-js-client, of which uploads are tested as well (install Node 18 or later, with npm)"

ALLOWED: Final = (NO_BROWSER, NO_NODE)
