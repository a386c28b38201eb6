-- repair: runs behind common. Values that no script of ours writes; a first reader can skip this.
--
-- Another client, or an operator's hand, can write anything into the keys. The scripts believe what
-- they could have written. For any other value they take one that errs on the safe side, or delete
-- it; if it was a field of meta, the state counts as lost. A heartbeat checks all of meta, and the
-- fleet's first one in a lease's time sweeps away what no script would remove.

local function is_exact(n) return n and n * n < 2 ^ 106 end -- |n| < 2^53, and not nan
local function is_count(n) return n and n >= 0 and n < 2 ^ 53 and n % 1 == 0 end

-- These return 0, the shortest lease, and `default` for a value that is none of theirs.
local function count_of(value)
  local n = tonumber(value or 0)
  return is_count(n) and n or 0
end
local function lease_of(value)
  local n = tonumber(value or '')
  return n and n >= SHORTEST and n <= DAY and n or SHORTEST
end
local function read_meta(field, default, most)
  local n = tonumber(redis.call('HGET', meta, field) or default)
  return n and n >= 0 and n <= most and n or default
end

local function forget_field(field) -- and with it the state, as in any other loss
  redis.call('HDEL', meta, field, 'epoch')
  epoch = false
end
local function validate_fields(fields, values) -- deletes fields that are no counts, and the values
  for i, field in ipairs(fields) do
    local n = tonumber(values[i] or 0)
    if not is_count(n and field == 'skew' and math.abs(n) or n) then
      forget_field(field)
      values[i] = false
    end
  end
end
