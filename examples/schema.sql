-- The table that the example programs work on.
create table if not exists orders (
  id   bigint generated always as identity primary key,
  item text not null,
  paid boolean not null default false
);
