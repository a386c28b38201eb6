package orders

import (
	"context"
)

const createOrder = `-- name: CreateOrder :one
insert into orders (item) values ($1) returning id, item, paid
`

func (q *Queries) CreateOrder(ctx context.Context, item string) (Order, error) {
	row := q.db.QueryRow(ctx, createOrder, item)
	var i Order
	err := row.Scan(&i.ID, &i.Item, &i.Paid)
	return i, err
}
