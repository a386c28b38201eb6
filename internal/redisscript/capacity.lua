-- capacity: sets, or withdraws, the operator's capacity for the whole fleet.
--
-- ARGV   2 the capacity; 0 withdraws it, and the smallest declared by a live session is in force again
-- Returns the capacity in force
-- Clock: Redis's.
-- Twice: sets the same value. A lower one revokes nothing: the fleet drains to it, as pools are asked to give back what is too much.

local limit = tonumber(ARGV[2])
if limit > 0 then redis.call('HSET', meta, 'limit', whole(limit)) else redis.call('HDEL', meta, 'limit') end
local capacity = effective_capacity()
purge()
if epoch and open_gate() then pump(capacity, '', {}) end
if epoch then drain(capacity) end
tally()
return capacity
