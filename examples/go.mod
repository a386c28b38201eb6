module github.com/passbuddy/passbuddy/examples

go 1.26.0

require (
	github.com/jackc/pgx/v5 v5.12.0
	github.com/passbuddy/passbuddy v0.1.0
)
