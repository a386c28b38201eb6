-- types: what each key holds, for the error of a script that met another type than its own. Runs by itself, not behind common.lua.
--
-- ARGV   none
-- Returns {type of each of KEYS, "none" where there is nothing, ...}
-- Clock: none.
-- Twice: reads only.

local types = {}
for i, key in ipairs(KEYS) do types[i] = redis.call('TYPE', key).ok end
return types
