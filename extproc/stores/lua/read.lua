-- {counters} → readings.

local readings = {}
for place, counter in ipairs(step.counters) do
  if counter.kind == "window" and is_missing(counter) then
    readings[place] = { false, "0", 0 }
  else
    readings[place] = reading(counter, look(counter), "0")
  end
end
return cmsgpack.pack(readings)
