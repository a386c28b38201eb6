-- +goose Up
create table shipments (order_id bigint primary key, sent timestamptz);

-- +goose Down
drop table shipments;
