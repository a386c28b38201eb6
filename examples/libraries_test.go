package examples

import (
	"strings"
	"testing"
)

// Each program holds the cap, although it would open more connections.
func TestLibraries(t *testing.T) {
	for _, f := range []fleet{
		{program: "pgxpool", orders: 40},
		{program: "databasesql", orders: 40},
		{program: "pq", orders: 40},
		{program: "sqlx", orders: 40},
		{program: "gorm", orders: 40},
		{program: "bun", orders: 42},
		{program: "sqlc", orders: 40},
		{program: "scany", orders: 40},
		{program: "migrate", orders: 40},
		{program: "goose", orders: 40},
		{program: "otelsql", orders: 40, says: "40 inserts traced"},
		{program: "otelsql", args: []string{"under"}, orders: 40, says: "40 inserts traced"},
		{program: "otelpgx", orders: 40, says: "40 checkouts traced"},
		{program: "ent", orders: 40},
		{program: "watermill", orders: 8, setUp: []string{"watermill", "migrate"}, service: true},
		{program: "river", orders: 40, setUp: []string{"river", "migrate"}, service: true},
		{program: "riverlisten", orders: 40, setUp: []string{"river", "migrate"}, service: true,
			extra: 2},
	} {
		t.Run(strings.Join(append([]string{f.program}, f.args...), " "), f.test)
	}
}
