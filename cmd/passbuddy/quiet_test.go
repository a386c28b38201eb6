package main

import "github.com/passbuddy/passbuddy/internal/quiet"

func init() { quiet.Redis() }
