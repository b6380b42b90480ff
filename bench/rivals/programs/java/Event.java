import com.fasterxml.jackson.annotation.JsonIgnoreProperties;
import com.fasterxml.jackson.databind.ObjectMapper;
import com.fasterxml.jackson.databind.ObjectReader;
import java.io.IOException;
import java.io.UncheckedIOException;

/** What the job needs of an inference event; the rest of the JSON is skipped. */
@JsonIgnoreProperties(ignoreUnknown = true)
public class Event {
  private static final ObjectReader READER = new ObjectMapper().readerFor(Event.class);

  public double time_unix_s;
  public String model;
  public String endpoint;
  public double duration_s;
  public String status;

  public long timeMillis() {
    return Math.round(time_unix_s * 1000);
  }

  public String series() {
    return model + " " + endpoint;
  }

  static Event read(byte[] json) {
    try {
      return READER.readValue(json);
    } catch (IOException e) {
      throw new UncheckedIOException(e);
    }
  }
}
