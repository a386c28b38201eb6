-- pause: runs behind sessions. An operator pauses grants, or resumes them.
-- ARGV   2 for how long, ms: above 0 pauses; 0 resumes; below 0 pauses until it is resumed; '' only
--        looks
--        3 '1' to drain: to recall all that is held, too   4 who and why, as JSON   5 who
-- Returns {permits held, now}
-- Clock: Redis's. Twice: sets the same pause, from when it was first set, and recalls nothing twice.
--
-- Held permits are renewed while grants are paused. Requests wait in the queue. A pause with an end
-- is over when that has come: the next heartbeat of the fleet ends it, see renew.

notice_operators_step()
local span, drain_now = tonumber(ARGV[2]), ARGV[3] == '1'
local paused, drained = pause and pause.upto > now, drains()
local FOREVER = 2 ^ 52 -- ms
if not span then
  drain_now = drained
elseif span == 0 then
  redis.call('HDEL', meta, 'pause')
  pause = nil
  if paused then record_event('resumed', nil, '', ARGV[5]) end
else
  local since, upto = paused and pause.since or now, span > 0 and now + span or FOREVER
  pause = { since = since, upto = upto, drains = drain_now }
  local words = { whole(since), whole(upto), drain_now and '1' or '0', ARGV[4] }
  redis.call('HSET', meta, 'pause', table.concat(words, ' '))
  local known, note = pcall(cjson.decode, ARGV[4])
  local why = known and type(note) == 'table' and type(note.reason) == 'string' and note.reason or ''
  local was = paused and drained == drain_now
  if not was then record_event(drain_now and 'drained' or 'paused', nil, why, ARGV[5]) end
end
if epoch and drained and not drains() then withdraw_unpromised() end
expire_leases()
local capacity = effective_capacity()
if epoch then
  move_permits(capacity)
  drain(capacity)
end
save_count()
return { redis.call('ZCARD', permits), now }
