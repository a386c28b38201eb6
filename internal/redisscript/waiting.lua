-- waiting: runs last in exchange, behind recalls. Finds permits for requests that wait, and
-- withdraws promises that none needs any more.

local function answer_offer() -- promises what is offered, and returns whether any of it is needed
  redis.call('ZREMRANGEBYSCORE', promises, '-inf', now)
  local wanted = -redis.call('ZCARD', promises) -- by other pools, and not promised yet
  for _, waiter in ipairs(waiters_in_need()) do
    if waiter.pool ~= offerer then wanted = wanted + waiter.wants end
  end
  local promised, lacks = math.min(offered, math.max(0, wanted), kept_by(offerer)), min_lacks(own)
  if lacks then promised = math.min(promised, math.max(0, -lacks)) end
  for _ = 1, promised do promise(offerer, now, OFFER) end
  return promised > 0
end

-- Finds permits: by a look, offers, recalls. Returns when the next look may be, ms, and whether what
-- is offered is needed.
local function find_permits()
  local look, new, needed = 0, false, false
  if paused then return look, needed end
  if waiting > 0 then look, new = ask_look(own) end
  if awaits_look() then return look, needed end
  -- Holders are told when the queue begins; what they get from then on tells them, too. Where a
  -- look came first, they are told after it.
  if waiting > 0 and (queued and began or new) then push_wanted() end
  if waiting > 0 and offered > 0 then needed = answer_offer() end
  if waiting > 0 or redis.call('ZCARD', promises) > 0 then balance(cap) end
  return look, needed
end
local function wake_at(look) -- when this session is to ask again, ms
  if waiting == 0 then return 0 end
  if paused and pause and pause.upto > now then return pause.upto end
  if paused then
    local early = tonumber(redis.call('HGET', meta, 'early') or 0)
    return early > now and early or paused_until
  end
  local wake = tonumber(redis.call('ZRANGE', permits, 0, 0, 'WITHSCORES')[2] or 0)
  if calm_until() > now and redis.call('ZCARD', permits) < cap then wake = calm_until() end
  return look > 0 and wake > 0 and math.min(wake, look) or math.max(wake, look)
end

local look, needed = find_permits()
return answer(wake_at(look), needed and { recalls_of(offerer) } or {})
