-- record: runs behind queue. Records which backend a permit covers, before its connection is used; or
-- that it covers none, before another is opened. See record_backend.
-- ARGV   2 session   3 its epoch   4 the permit's UUID   5 "<pid> <start, us> <server, us> <n>"
-- Returns 1. 0 if the permit is not held any more: close the connection, or do not open it. -1 if
--         the state is of another epoch: renew first, which re-asserts the permit.
-- Clock: Redis's. Twice: records the same, and nothing once a later backend is recorded.

local id = ARGV[4]
if epoch ~= ARGV[3] then return -1 end
local expiry = redis.call('ZSCORE', permits, id)
if not expiry or tonumber(expiry) <= now or is_quarantined(id) then return 0 end
redis.call('HSET', meta, 'fence', 1)
record_backend(id, ARGV[5], redis.call('HGET', backends, id))
-- The session may be the first for a while that has a connection to end other backends by.
if redis.call('HLEN', quarantine) > 0 then push_fence(ARGV[2]) end
return 1
