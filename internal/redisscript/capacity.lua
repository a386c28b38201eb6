-- capacity: runs behind memory and the shared parts. Sets, or withdraws, the operator's capacity.
-- ARGV   2 the capacity; 0 withdraws it: the smallest that a live session declares is in force
-- Returns the capacity in force
-- Clock: Redis's. Twice: sets the same value. A lower one revokes nothing: see drain in recalls.

local limit = tonumber(ARGV[2])
if limit > 0 then set_meta('limit', limit) else redis.call('HDEL', meta, 'limit') end
local capacity = effective_capacity()
expire_leases()
if epoch and may_grant() then grant_queue(capacity, '', {}) end
if epoch then drain(capacity) end
save_count()
return capacity
