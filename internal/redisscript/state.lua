-- state: runs behind common and repair. Every script begins here: its state, its clock, lost state.
--
-- The clock. Only Redis's clock decides, and a script reads it once. (Redis 5 and later replicate
-- what a script changes, not its text.) But that clock can be set. An hour on would end all leases
-- at once, an hour back would keep the dead. So `now` is the server's time less `skew`, and runs on
-- evenly.
--   - A time before the last heartbeat's is a step back.
--   - A time ahead of that, and of what the caller expects by its monotonic clock, is a step on. If
--     a server or a fleet slept instead, the leases slept too, and last longer than their holders
--     trust them: that errs on the safe side.
--   - A newcomer and an operator that has just begun expect nothing: see notice_step.
--   - A step too small to be noticed must not outlast the margin between the end of trust and the
--     end of a lease, a tenth of it. So STEP is a part of the fleet's shortest lease.

-- An operator's pause, "<since, ms> <until, ms> <1 if it drains, or 0> <JSON: who and why>".
local function parse_pause(text) -- nil if no script has written that
  local since, upto, drains = string.match(text, '^(%d+) (%d+) ([01]) ')
  since, upto = tonumber(since or ''), tonumber(upto or '')
  if not (is_exact(since) and is_exact(upto)) then return nil end
  return { since = since, upto = upto, drains = drains == '1' }
end
local function drains() return pause and pause.drains and pause.upto > now end

local stored, count, skew -- stored: fields of meta as Redis returns them
local function read_numbers() -- returns whether scripts can have written them
  cap, paused_until = tonumber(stored[1] or 0), tonumber(stored[2] or 0)
  reserve, count = tonumber(stored[3] or ''), tonumber(stored[4] or 0)
  skew, last = tonumber(stored[5] or 0), tonumber(stored[6] or 0)
  local kept = reserve or not stored[3] and 0
  return cap and paused_until and kept and count and skew and last and cap * cap + kept * kept
    + paused_until * paused_until + count * count + skew * skew + last * last < 2 ^ 106
end
local function read_state()
  local time = redis.call('TIME')
  server_time = time[1] * 1000 + math.floor(time[2] / 1000)
  stored = redis.call('HMGET', meta, 'cap', 'gate', 'reserve', 'count', 'skew', 'last', 'epoch',
    'fence', 'lease', 'pause')
  epoch, has_backends, lease = stored[7], stored[8], lease_of(stored[9])
  if stored[10] then pause = parse_pause(stored[10]) end
  if read_numbers() then return end
  validate_fields({ 'cap', 'gate', 'reserve', 'count', 'skew', 'last' }, stored)
  read_numbers()
end

local function set_now(time)
  now = time
  set_meta('skew', server_time - now)
end
local function correct_clock()
  local expected, step = tonumber(ARGV[1]), math.floor(STEP * lease)
  now = server_time - skew
  if last - math.max(now, expected) > DAY then
    forget_field('last')
    last = 0
  end
  local on = last > 0 and expected > 0 and now - math.max(last, expected) > step
  if now < last - step or on then set_now(math.max(last, expected - step)) end
end
local function any_backends()
  return redis.call('HLEN', backends) + redis.call('HLEN', quarantine) > 0
end
-- A set of permits that is gone although permits were held is state lost like any other. Single
-- permits that are missing were removed by hand.
local function check_permits()
  has_backends = has_backends or not epoch and any_backends()
  local there = epoch and redis.call('ZCARD', permits)
  if there == 0 and count > 1 then
    forget_field('epoch')
  elseif there and there < count then
    redis.call('HSET', meta, 'count', there)
  end
end

-- Returns whether scripts may grant now. A pause ends early once all sessions that any session knew
-- of are back, and those that none knew of yet have had time for a heartbeat.
--
-- A session is back once it has sent a call that knows this state. The call before, which finds the
-- loss, does not suffice: Redis may execute it late, and it does not name what the session was
-- granted since it was made. If the process stops just then, it trusts permits that Redis does not
-- count. But a session takes the new epoch only when Redis counts again all that it trusts. From
-- then on it trusts no grant of an older state. Only calls that know the epoch, or join, write to
-- `info`. Those that joined, `news` of them, are none that any session knew of before the loss.
local function may_grant()
  if pause and pause.upto > now then return false end
  if paused_until <= now then return true end
  local m = redis.call('HMGET', meta, 'early', 'known', 'news')
  local early, known, joined = tonumber(m[1] or paused_until), tonumber(m[2] or 0), m[3] or 0
  if now < early or known == 0 then return false end
  if redis.call('HLEN', info) - joined < known then return false end
  paused_until = now
  set_meta('gate', now)
  return true
end
local function save_count() -- at the end of every script that writes
  if change ~= 0 then redis.call('HINCRBY', meta, 'count', change) end
end

read_state()
correct_clock()
check_permits()
