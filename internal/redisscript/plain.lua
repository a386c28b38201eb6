-- plain: runs first in exchange, behind no other part, to cost little more than its commands.
-- Grants and releases plain permits while nobody waits. It leaves anything else untouched: to
-- handover what is released while requests wait, and all else to the rest. KEYS, ARGV, what it
-- returns, clock, twice: see exchange.
--
-- Nobody waits, so nothing released is to be passed on, and nothing wanted passes anyone. Expired
-- leases count as held here, which errs on the safe side; where that leaves no room the rest looks
-- again. A permit wanted twice is found held, and ZADD extends it. That would be wrong for one in
-- quarantine, so the rest runs while there is any. If Redis has reached maxmemory, it refuses to
-- add a permit: see memory.

local n_released, n_waits, n_tries = tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7])
local FIRST, WANTED = 9, 9 + n_released -- where those to release and those wanted begin
local REST = WANTED + n_waits + n_tries -- where all else begins, if there is any

local waiting = #ARGV < REST and redis.call('ZCARD', KEYS[2]) -- requests; false if there is a rest
if waiting == 0 and REST == WANTED then
  local released = redis.call('ZREM', KEYS[1], unpack(ARGV, FIRST, WANTED - 1))
  if released > 0 then redis.call('HINCRBY', KEYS[3], 'count', -released) end
  return 0
end

local state, now, room -- of meta; room is nil where anything is out of the ordinary
if waiting and (waiting == 0 or REST == WANTED) then
  state = redis.call('HMGET', KEYS[3], 'epoch', 'cap', 'gate', 'reserve', 'count', 'skew', 'lease',
    'pause', 'fence')
  local time = redis.call('TIME')
  now = time[1] * 1000 + math.floor(time[2] / 1000) - (state[6] or 0)
  local held, step = redis.call('ZCARD', KEYS[1]), 0.08 -- STEP of common
  local reserve = tonumber(state[4] or 0) -- no script sets one below 0
  if state[1] == ARGV[3] and not state[8] and held >= tonumber(state[5] or 0) and reserve
    and tonumber(state[3] or 0) <= now
    and math.abs(now - ARGV[1]) <= step * math.min(tonumber(state[7] or '') or 0, ARGV[4]) then
    room = (state[2] or 0) - math.max(0, reserve) - held
  end
end

if room and waiting == 0 and REST - WANTED <= room
  and not (state[9] and redis.call('HLEN', KEYS[13]) > 0) then -- fence, quarantine
  local expiry, added = now + ARGV[4], {}
  for i = 1, REST - WANTED do
    added[2 * i - 1] = expiry
    added[2 * i] = ARGV[WANTED + i - 1]
  end
  local change = redis.pcall('ZADD', KEYS[1], unpack(added))
  if type(change) == 'number' then
    if n_released > 0 then
      change = change - redis.call('ZREM', KEYS[1], unpack(ARGV, FIRST, WANTED - 1))
    end
    if change ~= 0 then redis.call('HINCRBY', KEYS[3], 'count', change) end
    return now
  end
end
