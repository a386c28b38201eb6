-- gone: runs behind recalls. Takes the answer to a look, and frees the permits whose backend it saw
-- gone.
-- ARGV   2 the epoch in which the look was asked for, 3 meta's looks at that time; see ask_look
--        then for each permit: its UUID, and the record that named the backend
-- Returns how many permits are free by that
-- Clock: Redis's. Twice: a permit that is free has no record any more; or what comes first ends.
--
-- A session of which a backend was seen gone, and that does not listen, is most probably dead. Its
-- requests leave the queue, or the permits would be granted to it again. Should it live, it asks
-- again within RetryInterval: that costs it its place, and nothing else.

local freed, owners = 0, {}
for i = 4, has_backends and epoch == ARGV[2] and #ARGV or 0, 2 do
  if redis.call('HGET', backends, ARGV[i]) == ARGV[i + 1] and release(ARGV[i]) then
    freed = freed + 1
    owners[session_of(ARGV[i])] = (owners[session_of(ARGV[i])] or 0) + 1
  end
end
if freed > 0 then
  for session, n in pairs(owners) do
    record_event('gone', session, n .. (n == 1 and ' backend' or ' backends'))
  end
  -- It was worth waiting for. The next one is, too.
  redis.call('HDEL', meta, 'look', 'looks', 'answered')
  for _, request in ipairs(redis.call('ZRANGE', queue, 0, -1)) do
    local _, ids = parse(request)
    if ids[1] and owners[session_of(ids[1])] then redis.call('ZREM', queue, request) end
  end
  move_permits(cap)
elseif has_backends and epoch == ARGV[2] and ARGV[3] == whole(read_meta('looks', 0, now)) then
  local began = tonumber(ARGV[3])
  if read_meta('answered', 0, now) < began then set_meta('answered', now) end -- by this row's first
  if awaits_look() then set_meta('await', await_end(began)) end
end
save_count()
return freed
