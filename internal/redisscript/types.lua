-- types: runs behind no other part. Names what each key holds, for an error about it.
-- ARGV   none
-- Returns {type of each of KEYS, "none" where there is nothing, ...}
-- Clock: none. Twice: reads only.

local types = {}
for i, key in ipairs(KEYS) do types[i] = redis.call('TYPE', key).ok end
return types
