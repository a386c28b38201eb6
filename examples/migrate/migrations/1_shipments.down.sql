drop table shipments;
