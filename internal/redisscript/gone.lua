-- gone: frees permits whose backend was seen gone by a session that was asked to look. See ask_look
-- in quarantine.
--
-- ARGV   2 the epoch in which it was asked
--        then for each permit: its UUID, and the record that named the backend
-- Returns how many permits are free by that
-- Clock: Redis's.
-- Twice: a permit that is free has no record any more.
--
-- A session of which a backend was seen gone, and that does not listen, is most probably dead. Its
-- requests leave the queue, or the permits would be granted to it again. Should it live, it asks
-- again within RetryInterval: that costs it its place, and nothing else.

local freed, owners = 0, {}
if fence and epoch and epoch == ARGV[2] then
  for i = 3, #ARGV, 2 do
    local id = ARGV[i]
    if redis.call('HGET', backends, id) == ARGV[i + 1] and drop(id) then
      freed = freed + 1
      owners[session_of(id)] = true
    end
  end
end
if freed > 0 then
  redis.call('HDEL', meta, 'look', 'looks') -- it was worth waiting for, and so is the next one
  for _, request in ipairs(redis.call('ZRANGE', queue, 0, -1)) do
    local _, ids = parse(request)
    if ids[1] and owners[session_of(ids[1])] then redis.call('ZREM', queue, request) end
  end
  if open_gate() then
    local capacity = tonumber(state[2] or 0)
    pump(capacity, '', {})
    if redis.call('ZCARD', queue) + redis.call('ZCARD', promises) > 0 and not awaits_look() then balance(capacity) end
  end
end
tally()
return freed
