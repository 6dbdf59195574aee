import sys

from fasegr_programs import main

sys.exit(main())
