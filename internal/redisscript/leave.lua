-- leave: a session ends cleanly. Its permits and its place among the sessions are free at once.
--
-- ARGV   2 session   3 its epoch   4 number of requests to drop, then those, "<ttl> <UUID>..."
-- Returns {'ok'}
-- Clock: Redis's.
-- Twice: what was removed is not there. Its requests still in the queue leave when they come to its head.

local own = ARGV[2]
for i = 1, tonumber(ARGV[4]) do
  local request = ARGV[4 + i]
  redis.call('ZREM', queue, request)
  local _, ids = parse(request)
  for _, id in ipairs(ids) do drop(id) end
end
redis.call('ZREM', sessions, own)
redis.call('ZREM', capacities, own)
redis.call('HDEL', info, own)
forget({ [own] = true })
purge() -- now that nobody asks us for anything any more
if epoch and epoch == ARGV[3] and redis.call('ZCARD', sessions) > 0 and open_gate() then
  local capacity = effective_capacity()
  pump(capacity, own, {})
  if redis.call('ZCARD', promises) > 0 then balance(capacity) end
end
tally()
return { 'ok' }
