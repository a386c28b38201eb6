-- plain: runs first in exchange, behind no other part, to cost little more than its commands. Plain
-- permits while nobody waits; anything else it leaves untouched to the rest. KEYS, ARGV, what it
-- returns, clock, twice: see exchange.
--
-- Nobody waits, so nothing released is to be passed on, and nothing wanted passes anyone. Expired
-- leases count as held here, which errs on the safe side; where that leaves no room the rest looks
-- again. A permit wanted twice is found held: ZADD extends it. If Redis has reached maxmemory, it
-- refuses to add a permit: see memory.

local n_released, n_waits, n_tries = tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7])
local FIRST, WANTED = 9, 9 + n_released -- where those to release and those wanted begin
local REST = WANTED + n_waits + n_tries -- where all else begins, if there is any

if #ARGV < REST and redis.call('ZCARD', KEYS[2]) == 0 then
  local change = 0
  if REST == WANTED then
    change = redis.call('ZREM', KEYS[1], unpack(ARGV, FIRST, WANTED - 1))
    if change > 0 then redis.call('HINCRBY', KEYS[3], 'count', -change) end
    return 0
  end
  local meta = redis.call('HMGET', KEYS[3], 'epoch', 'cap', 'gate', 'reserve', 'count', 'skew',
    'lease', 'pause')
  local time = redis.call('TIME')
  local now = time[1] * 1000 + math.floor(time[2] / 1000) - (meta[6] or 0)
  local held, step = redis.call('ZCARD', KEYS[1]), 0.08 -- STEP of common
  local reserve = tonumber(meta[4] or 0) -- no script sets one below 0
  if meta[1] == ARGV[3] and not meta[8] and held >= tonumber(meta[5] or 0) and reserve
    and held + REST - WANTED <= (meta[2] or 0) - math.max(0, reserve)
    and tonumber(meta[3] or 0) <= now
    and math.abs(now - ARGV[1]) <= step * math.min(tonumber(meta[7] or '') or 0, ARGV[4]) then
    local expiry, added = now + ARGV[4], {}
    for i = 1, REST - WANTED do
      added[2 * i - 1] = expiry
      added[2 * i] = ARGV[WANTED + i - 1]
    end
    change = redis.pcall('ZADD', KEYS[1], unpack(added))
    if type(change) == 'number' then
      if n_released > 0 then
        change = change - redis.call('ZREM', KEYS[1], unpack(ARGV, FIRST, WANTED - 1))
      end
      if change ~= 0 then redis.call('HINCRBY', KEYS[3], 'count', change) end
      return now
    end
  end
end
