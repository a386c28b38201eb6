-- handover: runs behind plain in exchange. Hands plain permits that are released over to requests
-- that wait for plain permits. KEYS, ARGV, what it returns, clock, twice: see exchange.
--
-- Where no pool holds anything, and no minimum, backend or promise is known, there is no balance to
-- keep, and nobody to be asked for a permit. So these grants are all that the rest would do. The
-- rest takes over where it would do more: where a lease has expired, or a request is of another
-- kind, or its session not alive. A permit is added after those released were removed. Redis does
-- not refuse that, even if it has reached maxmemory.

if room and room >= 0 and waiting > 0 and not (state[4] or state[9]) -- reserve, fence
  and redis.call('ZCARD', KEYS[7]) + redis.call('ZCARD', KEYS[10]) == 0 then -- levels, promises
  local function first_expiry()
    return tonumber(redis.call('ZRANGE', KEYS[1], 0, 0, 'WITHSCORES')[2] or 0)
  end
  local line, served = redis.call('ZRANGE', KEYS[2], 0, room + n_released - 1), {}
  for i, request in ipairs(line) do
    local ttl, id, session = string.match(request, '^(%d+) ((%x+%-%x+%-%x+)%-8000%-%x+)$')
    local expiry = session and redis.call('ZSCORE', KEYS[4], session)
    if tonumber(expiry or 0) <= now then break end
    served[i] = { id = id, session = session, expiry = now + ttl }
  end
  if #served == #line and first_expiry() > now then
    -- From here on memory could not find out whether there is any: this is a write.
    local released = redis.call('ZREM', KEYS[1], unpack(ARGV, FIRST, WANTED - 1))
    local publish = (redis.REDIS_VERSION_NUM or 0) >= 0x00070000 and 'SPUBLISH' or 'PUBLISH'
    local words = string.format('g %s %.0f ', state[1], now) -- PUSH.grant
    local change, granted = -released, {}
    for i = 1, math.min(#line, room + released) do
      local to = served[i]
      redis.call('ZREM', KEYS[2], line[i])
      change = change + redis.call('ZADD', KEYS[1], to.expiry, to.id)
      if to.session == ARGV[2] then
        granted[#granted + 1] = to.id
      else
        redis.pcall(publish, '{' .. KEYS[1] .. '}:push:' .. to.session, words .. to.id)
      end
      waiting = waiting - 1
    end
    if change ~= 0 then redis.call('HINCRBY', KEYS[3], 'count', change) end
    return { 'served', now, waiting > 0 and first_expiry() or 0, waiting, granted }
  end
end
