-- leave: runs behind sessions. Ends a session: its permits are free at once.
-- ARGV   2 session   3 its epoch   4 number of requests to drop, then those, "<ttl, ms> <UUID>..."
-- Returns {'ok'}
-- Clock: Redis's. Twice: what was removed is not there. Requests of the session that are still in
-- the queue leave when they come to its head.

local own = ARGV[2]
for i = 5, 4 + tonumber(ARGV[4]) do
  redis.call('ZREM', queue, ARGV[i])
  local _, ids = parse(ARGV[i])
  for _, id in ipairs(ids) do release(id) end
end
if redis.call('ZSCORE', sessions, own) then record_event('left', own) end
remove_session(own)
forget_sessions({ [own] = true })
expire_leases() -- now that nobody asks this session for anything any more
if epoch and epoch == ARGV[3] and redis.call('ZCARD', sessions) > 0 and may_grant() then
  local capacity = effective_capacity()
  grant_queue(capacity, own, {})
  if redis.call('ZCARD', promises) > 0 and not awaits_look() then balance(capacity) end
end
save_count()
return { 'ok' }
