-- gone: runs behind memory and the shared parts. Frees permits whose backend a look saw gone.
-- ARGV   2 the epoch in which the look was asked for, see ask_look
--        then for each permit: its UUID, and the record that named the backend
-- Returns how many permits are free by that
-- Clock: Redis's. Twice: a permit that is free has no record any more.
--
-- A session of which a backend was seen gone, and that does not listen, is most probably dead. Its
-- requests leave the queue, or the permits would be granted to it again. Should it live, it asks
-- again within RetryInterval: that costs it its place, and nothing else.

local freed, owners = 0, {}
for i = 3, has_backends and epoch == ARGV[2] and #ARGV or 0, 2 do
  if redis.call('HGET', backends, ARGV[i]) == ARGV[i + 1] and release(ARGV[i]) then
    freed = freed + 1
    owners[session_of(ARGV[i])] = (owners[session_of(ARGV[i])] or 0) + 1
  end
end
if freed > 0 then
  for session, n in pairs(owners) do record_event('gone', session, n .. ' backends') end
  redis.call('HDEL', meta, 'look', 'looks') -- it was worth waiting for, and so is the next one
  for _, request in ipairs(redis.call('ZRANGE', queue, 0, -1)) do
    local _, ids = parse(request)
    if ids[1] and owners[session_of(ids[1])] then redis.call('ZREM', queue, request) end
  end
  move_permits(cap)
end
save_count()
return freed
