-- The part of exchange for plain permits while nobody waits: in front of everything else, so that it costs little more than the commands
-- it runs. What it cannot do, it leaves untouched to the rest.
--
-- Nothing waits, so nothing released is to be passed on, and nothing wanted passes anyone. Expired leases count as held here, which errs on
-- the safe side; where that leaves no room the rest looks again. A permit wanted twice is found held: ZADD then extends it.
--
-- Where Redis has reached maxmemory it refuses to add a permit: see memory.

local n_released, n_waits, n_tries = tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7])
local FIRST = 9
local REST = FIRST + n_released + n_waits + n_tries -- where what is not of plain permits begins, if there is any

if #ARGV < REST and redis.call('ZCARD', KEYS[2]) == 0 then
  local wanted, change = n_waits + n_tries, 0
  if wanted == 0 then
    change = redis.call('ZREM', KEYS[1], unpack(ARGV, FIRST, FIRST + n_released - 1))
    if change > 0 then redis.call('HINCRBY', KEYS[3], 'count', -change) end
    return 0
  end
  local state = redis.call('HMGET', KEYS[3], 'epoch', 'cap', 'gate', 'reserve', 'count', 'skew', 'lease')
  local time = redis.call('TIME')
  local now = time[1] * 1000 + math.floor(time[2] / 1000) - (state[6] or 0)
  local held = redis.call('ZCARD', KEYS[1])
  if state[1] == ARGV[3] and held >= tonumber(state[5] or 0) and held + wanted <= (state[2] or 0) - (state[4] or 0)
      and tonumber(state[3] or 0) <= now and math.abs(now - ARGV[1]) <= 0.08 * math.min(tonumber(state[7] or '') or 0, ARGV[4]) then -- STEP: see common
    local expiry, added = now + ARGV[4], {}
    for i = 1, wanted do
      added[2 * i - 1] = expiry
      added[2 * i] = ARGV[FIRST + n_released + i - 1]
    end
    change = redis.pcall('ZADD', KEYS[1], unpack(added))
    if type(change) == 'number' then
      if n_released > 0 then
        change = change - redis.call('ZREM', KEYS[1], unpack(ARGV, FIRST, FIRST + n_released - 1))
      end
      if change ~= 0 then redis.call('HINCRBY', KEYS[3], 'count', change) end
      return now
    end
  end
end
