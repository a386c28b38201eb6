-- name: CreateOrder :one
insert into orders (item) values ($1) returning id, item, paid;
