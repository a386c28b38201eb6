package examples

import "testing"

// Each program holds the cap, although it would open more connections.
func TestLibraries(t *testing.T) {
	for _, f := range []fleet{
		{program: "pgxpool", orders: 60},
		{program: "databasesql", orders: 60},
		{program: "pq", orders: 60},
		{program: "sqlx", orders: 60},
		{program: "gorm", orders: 60},
		{program: "bun", orders: 62},
		{program: "sqlc", orders: 60},
		{program: "scany", orders: 60},
		{program: "migrate", orders: 60},
		{program: "goose", orders: 60},
		{program: "otelsql", orders: 60, says: "60 inserts traced"},
		{program: "otelpgx", orders: 60, says: "60 checkouts traced"},
		{program: "ent", orders: 60},
		{program: "watermill", orders: 12, setUp: []string{"watermill", "migrate"}, service: true},
		{program: "river", orders: 60, setUp: []string{"river", "migrate"}, service: true},
		{program: "riverlisten", orders: 60, setUp: []string{"river", "migrate"}, service: true, extra: 2},
	} {
		t.Run(f.program, f.test)
	}
}
