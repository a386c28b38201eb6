-- leave: a session ends cleanly. Its permits and its place among the sessions are free at once.
--
-- ARGV   1 session   2 its epoch   3 number of requests to drop, then those, "<ttl> <UUID>..."
-- Returns {'ok'}
-- Clock: Redis's.
-- Twice: what was removed is not there. Its requests still in the queue leave when they come to its head.

local own = ARGV[1]
purge()
for i = 1, tonumber(ARGV[3]) do
  local request = ARGV[3 + i]
  redis.call('ZREM', queue, request)
  local _, ids = parse(request)
  for _, id in ipairs(ids) do drop(id) end
end
redis.call('ZREM', sessions, own)
redis.call('ZREM', capacities, own)
redis.call('HDEL', info, own)
forget({ [own] = true })
local state = redis.call('HMGET', meta, 'epoch', 'gate')
if state[1] == ARGV[2] and redis.call('ZCARD', sessions) > 0 and tonumber(state[2] or 0) <= now then
  pump(effective_capacity(), own, {})
end
return { 'ok' }
