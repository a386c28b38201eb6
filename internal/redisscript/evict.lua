-- evict: runs behind sessions. An operator takes one session's permits back.
-- ARGV   2 session   3 '1' to revoke what it holds, '0' to recall it, '' to recall what it was
--        granted since, without an entry in the log   4 who   5 why
-- Returns {permits that it held and that were not in quarantine, now}
-- Clock: Redis's. Twice: what was recalled is owed already; what was revoked is in quarantine.
--
-- A permit that was revoked is not free: it is counted until its backend is gone, or its lease is
-- over. Its holder finds at its next heartbeat, which the push asks for, that it is not renewed. That
-- heartbeat serves the queue; a second run of this script would take back what the first granted.

-- Puts a permit into quarantine whose lease goes on, because an operator revokes it. Without a
-- backend to end, it is counted until that lease is over: its holder cannot renew it.
local function revoke_permit(id)
  local backend = pid_and_start(redis.call('HGET', backends, id))
  if backend then return quarantine_permit(id, backend) end
  redis.call('HDEL', backends, id) -- or release would take the permit for one that still counts
  redis.call('HSET', quarantine, id, NO_BACKEND)
  uncount(id)
end

notice_operators_step()
local session, revokes, ids = ARGV[2], ARGV[3] == '1', {}
for _, id in ipairs(redis.call('ZRANGE', permits, 0, -1)) do
  local its = is_ours(id) and session_of(id) == session
  if its and not is_quarantined(id) then ids[#ids + 1] = id end
end
if revokes and #ids > 0 then
  has_backends = true
  redis.call('HSET', meta, 'fence', 1)
  for _, id in ipairs(ids) do revoke_permit(id) end
  local fencer = choose_fencer(session)
  if fencer then push_fence(fencer) end
  push(session, PUSH.lost)
elseif epoch and not revokes then
  recall_all(session)
end
if ARGV[3] ~= '' then
  local kind = revokes and 'revoked' or 'evicted'
  local counted = #ids .. (#ids == 1 and ' permit. ' or ' permits. ')
  record_event(kind, session, counted .. ARGV[5], ARGV[4])
end
expire_leases()
save_count()
return { #ids, now }
