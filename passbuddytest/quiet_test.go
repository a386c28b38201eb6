package passbuddytest_test

import "github.com/passbuddy/passbuddy/internal/quiet"

func init() { quiet.Redis() }
