-- capacity: sets, or withdraws, the operator's capacity for the whole fleet.
--
-- ARGV   1 the capacity; 0 withdraws it, and the smallest declared by a live session is in force again
-- Returns the capacity in force
-- Clock: Redis's.
-- Twice: sets the same value. A lower one revokes nothing: the fleet drains to it.

local limit = tonumber(ARGV[1])
if limit > 0 then redis.call('HSET', meta, 'limit', whole(limit)) else redis.call('HDEL', meta, 'limit') end
local capacity = effective_capacity()
purge()
if tonumber(redis.call('HGET', meta, 'gate') or 0) <= now then pump(capacity, '', {}) end
return capacity
