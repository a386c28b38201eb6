-- capacity: runs behind sessions. Sets, or withdraws, the operator's capacity.
-- ARGV   2 the capacity; 0 withdraws it: the smallest that a live session declares is in force
--        3 who sets it
-- Returns the capacity in force
-- Clock: Redis's. Twice: sets the same value. A lower one revokes nothing: see drain in recalls.

notice_operators_step()
local limit = tonumber(ARGV[2])
local before = cap
if limit > 0 then
  redis.call('HSET', meta, 'limit', whole(limit), 'limitby', ARGV[3], 'limitat', whole(now))
else
  redis.call('HDEL', meta, 'limit', 'limitby', 'limitat')
end
local capacity = effective_capacity()
local set = limit > 0 and 'set' or 'withdrawn'
record_event('capacity', nil, set .. ', ' .. whole(before) .. ' -> ' .. whole(capacity), ARGV[3])
expire_leases()
if epoch and may_grant() then grant_queue(capacity, '', {}) end
if epoch then drain(capacity) end
save_count()
return capacity
