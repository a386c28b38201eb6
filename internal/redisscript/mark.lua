-- mark: records which backend a permit covers, before anybody may use the connection; or that it
-- covers none, before another one is opened. See quarantine.
--
-- ARGV   2 session   3 its epoch   4 the permit's UUID
--        5 "<pid> <start, us> <server, us> <n>", see cover in quarantine
-- Returns 1; 0 if the permit is not held any more: the connection must be closed, or must not be
--         opened; -1 if the state is of another epoch: the session must renew first, which
--         re-asserts the permit
-- Clock: Redis's.
-- Twice: records the same. One that comes after a later backend was recorded changes nothing.

local id = ARGV[4]
if epoch ~= ARGV[3] then return -1 end
local expiry = redis.call('ZSCORE', permits, id)
if not expiry or tonumber(expiry) <= now or is_quarantined(id) then return 0 end
redis.call('HSET', meta, 'fence', 1)
cover(id, ARGV[5], redis.call('HGET', backends, id))
-- It may be the first for a while that has a connection to end others by.
if redis.call('HLEN', quarantine) > 0 then ask_end(ARGV[2]) end
return 1
