create table shipments (order_id bigint primary key, sent timestamptz);
